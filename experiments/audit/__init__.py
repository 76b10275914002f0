"""Whether the maps can be believed: ``evaluate --audit`` (docs/audit.md says what each test asks).

Read first: ``audit`` (which tests run, what is printed and written), then ``maps`` (of which
images, and how alike) and ``interventions`` (random weights; deletion and insertion).
"""
