"""A C2SP witness: cosigns checkpoints of the logs it knows, and never two that contradict each other.

    state.py    the newest checkpoint of each log, in SQLite
    witness.py  what a request is answered: the protocol's decisions
    app.py      HTTP: POST /add-checkpoint, GET /<hex SHA-256 of the origin>/checkpoint
    serving.py  key, name and state in one directory; the process

It shares no state with a ledger and needs none: organisations run one for each other.
"""
