"""What maps of detectors with weights look like, drawn without the weights.

In place of a network's answer comes what is true of a picture that is known: a rendered scene
(`still_life`) or points placed on a photograph (`person`). All that a detector does after its network
is its own code. `pictures` has one for each detector.
"""
