"""Ask the model file about a square: python ask.py MODEL.onnx SQUARE.npy."""

import sys

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1])
about = session.get_modelmeta().custom_metadata_map
square = np.load(sys.argv[2])
names = [output.name for output in session.get_outputs()]
found = dict(zip(names, session.run(None, {"image": square[None, None]}), strict=True))
y, x = np.unravel_index(found[about["best_map"]].argmax(), square.shape)
print(f"peak of {about['best_map']} in the square at x {x}, y {y}")
if "probability" in found:
    probability, threshold = found["probability"][0], float(about["threshold"])
    print(f"{'abnormal' if probability > threshold else 'normal'}: {probability:.4f}")
