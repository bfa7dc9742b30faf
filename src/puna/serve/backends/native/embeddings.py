"""Embeddings: the mean of the last hidden states, in OpenAI's two encodings."""

import base64

import torch

from puna.engine.generate import Engine
from puna.serve.backends.native.preprocess import check_length, prompt_ids
from puna.serve.openai.protocol import Embedding, EmbeddingRequest, EmbeddingResponse, EmbeddingUsage
from puna.web.errors import ApiError


def embed(engine: Engine, request: EmbeddingRequest, model: str) -> EmbeddingResponse:
    """The unit vectors of a request's inputs.

    dimensions: keep the first so many, normalised again.
    """
    config = engine.model.config
    if request.dimensions is not None and request.dimensions > config.hidden_size:
        raise ApiError(
            400,
            f"dimensions is {request.dimensions}, but this model's vectors have {config.hidden_size}.",
            param="dimensions",
        )
    ids = [prompt_ids(text, engine.tokenizer, bos=True) for text in request.inputs]
    for one in ids:
        check_length(one, config.max_position_embeddings, room=0, param="input")
    vectors = engine.embed(ids)[:, : request.dimensions].float()
    vectors = torch.nn.functional.normalize(vectors, dim=-1)
    data = []
    for index, vector in enumerate(vectors):
        values: list[float] | str = vector.tolist()
        if request.encoding_format == "base64":
            values = base64.b64encode(vector.contiguous().numpy().astype("<f4").tobytes()).decode()
        data.append(Embedding(object="embedding", index=index, embedding=values))
    count = sum(map(len, ids))
    return EmbeddingResponse(
        object="list", model=model, data=data, usage=EmbeddingUsage(prompt_tokens=count, total_tokens=count)
    )
