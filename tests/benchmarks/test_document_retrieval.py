import document_retrieval
import torch


def test_documents_lack_the_docstrings_that_are_asked_for():
    texts, queries = document_retrieval.documents(12)
    assert len(texts) == 12
    assert queries
    for number, said in queries.items():
        assert len(said) >= document_retrieval.SHORTEST
        assert said.splitlines()[0] not in texts[number][:2000]


def test_ranks_count_what_is_as_near():
    documents = torch.eye(3)
    queries = torch.tensor([[1.0, 0.5, 0.0], [1.0, 0.5, 0.0], [1.0, 1.0, 0.0]])
    assert document_retrieval.ranks(queries, documents, [0, 2, 1]).tolist() == [1, 3, 2]
