"""What annotation tools write, read into one form: ``recognition`` lists the nine formats.

Read ``marks`` first (images, marks, mistakes), then one reader, such as ``coco``; ``fields`` opens
files and checks what all of them read, ``shapes`` makes outlines and runs of it.
"""
