"""
The libraries that people use for data attribution, and ours, behind one signature.

A method takes recorded runs of one task and returns a score matrix `(n, m)`: the predicted change of the margin of
test row e if training row i is removed. The margin is `z_y - logsumexp(other logits)`, so the loss of a test row is
`softplus(-margin)` and no second matrix is needed for it. Each method has a file:

- `ours.py`: the sweep of hf_prune, asked the margins of the test rows;
- `captum_.py`: TracInCP, and gradient dot products (its last checkpoint alone);
- `kronfluence_.py`: EK-FAC influence functions;
- `traker_.py`: TRAK;
- `dattri_.py`: DVEmb, and influence functions by conjugate gradients;
- `dattri_llm_.py`: AdamW-influence, and DVEmb without projection.

`tasks.py` has data and models, `recorded.py` a run through the Trainer, `rerun.py` the same steps again with rows left
out, `truth.py` what is predicted, `measures.py` how well, `study.py` puts them together.
"""
