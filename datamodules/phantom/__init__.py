"""The phantom: synthetic radiographs with exact lesion masks, to run every stage at once.

Read ``source`` (the data set and its tree) first, then ``drawing`` (one image from end to end); it
uses ``scenes`` (the anatomy), ``bones`` (attenuation), ``lesions`` and ``film``.
"""
