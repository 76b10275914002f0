"""A trained run at work: predictions on new images, and a model file with a card for others.

Read predicting.py first, then folder.py (what is written, and resumed). exporting.py makes the ONNX
file and its card.
"""
