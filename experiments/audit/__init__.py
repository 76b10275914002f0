"""Whether the maps can be believed: ``evaluate --audit`` (docs/audit.md says what each test asks).

Read first: ``audit`` (the four tests), then what they are made of: ``cascade`` (random weights),
``similarity`` (of two maps), ``perturbation`` (deletion and insertion), ``sample`` (which images).
``table`` runs the tests, prints them and writes ``audit.json``.
"""
