"""Training over several processes, on one host or many.

`session` connects the processes of a run by `jax.distributed` and ends all of them if one fails. Outside of a
session, and in a run of one process, the other functions do nothing or return what is their own.
"""

from specjax.distributed.exchange import agree, exchange, is_main, main_first, say_on_main, share, synchronise
from specjax.distributed.session import finish, session

__all__ = [
    "agree",
    "exchange",
    "finish",
    "is_main",
    "main_first",
    "say_on_main",
    "session",
    "share",
    "synchronise",
]
