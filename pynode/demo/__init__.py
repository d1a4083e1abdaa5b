"""The main job on real data: an ODE-net against a ResNet made of the same block.

``pynode demo`` trains both on images of digits, compares accuracy, parameters, evaluations, time and memory, checks
the trained ODE-net's gradient against SciPy, and draws a picture. One file a step: ``data``, ``models``, ``training``,
``memory``, ``gradient_check``, ``report``, ``picture``; ``command`` runs them in order.
"""
