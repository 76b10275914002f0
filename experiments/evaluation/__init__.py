"""Runs and folders of maps, judged: figures with intervals, and what differs between runs.

Read ``run.evaluate`` first, then ``judge`` (what is kept of an image and a map), ``figures`` (what
is made of it), ``statistics`` (intervals) and ``compare``; ``methods`` says what a map method is.
"""
