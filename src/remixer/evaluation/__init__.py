"""What a rewritten model has lost, and what it costs: beside the model that it was made from.

Perplexity alone hides damage: a model may predict text well and have forgotten all of it that lies beyond a window.
"""

from remixer.evaluation.batches import Batch
from remixer.evaluation.costs import Cost, cost
from remixer.evaluation.embedded import Embeddings, embeddings
from remixer.evaluation.errors import EvaluationError
from remixer.evaluation.evaluating import evaluate
from remixer.evaluation.generated import Generation, continued, generation
from remixer.evaluation.losses import Bucket, Perplexity, perplexity
from remixer.evaluation.next_tokens import Agreement, agreement
from remixer.evaluation.planted import Needle, Recall, needle
from remixer.evaluation.result import Evaluation, Scores

__all__ = [
    "Agreement",
    "Batch",
    "Bucket",
    "Cost",
    "Embeddings",
    "Evaluation",
    "EvaluationError",
    "Generation",
    "Needle",
    "Perplexity",
    "Recall",
    "Scores",
    "agreement",
    "continued",
    "cost",
    "embeddings",
    "evaluate",
    "generation",
    "needle",
    "perplexity",
]
