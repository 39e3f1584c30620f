"""The commands of the terminal, one module each. Each parses its options, calls a function and prints the result.

    app          the table of commands, whose modules are imported when they are called
    output       printing: results on stdout, progress on stderr, JSON on request
    doctor_      `ossia doctor`
    recipes_     `ossia recipes`
    fetch_       `ossia fetch`
    data_        `ossia data`
    data_show    output of `ossia data show`: terminal, JSON lines, comparison with a template
    data_tree    output of `ossia data show --tree`
    plan_        `ossia plan`
    rehearse_    `ossia rehearse`
    train_       `ossia train`
    eval_        `ossia eval`
    chat_        `ossia chat`
    export_      `ossia export`
    harmony_     `ossia harmony`
    runs_        `ossia runs`
    make_        `ossia make`
    demo_        `ossia demo`

The work itself is done in `ossia.workflows` and in the lower layers. Help does not import torch.
"""
