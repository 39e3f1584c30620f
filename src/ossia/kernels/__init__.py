"""The few hot loops, each with a plain-torch twin that is the truth. Devices are told apart in here and nowhere above.

attention      softmax(q k) v and its gradients from the log-sum-exp
flash          the same for rows of different lengths at once, on GPUs
"""
