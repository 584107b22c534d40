"""How specjax fails: damaged files, killed processes, and machines that run out of something."""
