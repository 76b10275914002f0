"""From people's outlines to lesion masks, and from radiographs to what people draw on.

Read ``importing`` first (the import from end to end), then ``joining`` (marks become masks),
``matching`` (whose image a name is) and ``checks``; for the other way ``choosing`` and ``package``.
"""
