"""What a person runs: thin commands, the ground they stand on, and a room for each kind of work.

Ground, from the bottom: ``command`` (how commands begin and end), ``config`` (options), ``runs``
(run directories), ``build`` (configuration to Lightning objects, and ``open_run``). Rooms:
``training``, ``evaluation``, ``annotation``; above them ``audit``, ``reporting``, ``prediction``,
``cluster``. Read first: ``config``, ``build``, ``runs``, ``training.loop``, ``evaluation.run``.
"""
