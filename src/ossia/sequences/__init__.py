"""Training sequences without torch: prefix trees, the order of steps, and the tokens that shared prefixes save.

    example      a training example: token ids, weights and channels
    order        the order of the examples: conversations, epochs and steps
    weighting    equal weights in the loss for tokens, turns or conversations
    tree         prefix trees of examples, cut and packed into micro-batches
    sharing      the decision whether prefixes are shared, and an estimate of the saving

This package does not import torch.
"""
