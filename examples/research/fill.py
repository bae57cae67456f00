"""Fills a local Qdrant database with the handbook of a theatre: `.venv/bin/python examples/research/fill.py`.

The embeddings come from where the workers of `dalang dev` get theirs: OpenAI if OPENAI_API_KEY is set, else the scripted model.
"""

import os
import sys

from openai import OpenAI
from qdrant_client import QdrantClient
from qdrant_client.models import Distance, PointStruct, VectorParams

PATH = "/tmp/dalang-handbook"              # `path` and `collection` of the pool's retriever
COLLECTION = "handbook"
EMBEDDING_MODEL = "text-embedding-3-small"  # its `embedding.name`

HANDBOOK = {
    "leave": "Every employee has 28 days of paid leave a year. Ask for it two weeks ahead; in the festival month of August nobody is away.",
    "sickness": "Whoever is sick calls the stage office before ten. From the third day on a doctor's note is needed.",
    "travel": "Trains are booked by the office. Flights are allowed only where the train takes more than eight hours.",
    "expenses": "Hand in receipts within 30 days. Meals on tour are paid up to 25 euros a day, without alcohol.",
    "rehearsals": "Rehearsals begin at six in the evening and end by nine. Whoever comes late pays for the tea.",
    "puppets": "Puppets are made of buffalo hide. Never leave them in the sun, and store them flat between sheets of cotton.",
    "lamp": "The oil lamp over the stage is lit and put out by the lamp keeper alone. A bucket of sand stands behind the screen.",
    "gamelan": "Nobody steps over an instrument of the gamelan. Mallets are counted after every performance.",
    "tickets": "Employees get two free tickets for each performance. Children under six need no ticket.",
    "training": "Each puppeteer may spend five days a year on courses, which the theatre pays up to 800 euros.",
    "keys": "A lost key is reported the same day. The lock is changed at the theatre's expense the first time.",
    "photographs": "Photographs during a performance need the puppeteer's word. A flash is never allowed.",
}


def connect() -> OpenAI:
    if "OPENAI_API_KEY" in os.environ:
        return OpenAI()
    return OpenAI(base_url=f"{os.environ['DALANG_MODEL_URL']}/v1", api_key="none")


def main() -> None:
    with connect() as openai:
        embeddings = openai.embeddings.create(model=EMBEDDING_MODEL, input=list(HANDBOOK.values())).data
    points = [
        PointStruct(id=number, vector=embedding.embedding, payload={"source": source, "text": text})
        for number, (embedding, (source, text)) in enumerate(zip(embeddings, HANDBOOK.items()))
    ]
    try:
        qdrant = QdrantClient(path=PATH)
    except RuntimeError:
        sys.exit(f"{PATH} is open in a worker, and takes one process: kubectl scale deployment dalang-research --replicas=0")
    size = len(embeddings[0].embedding)     # another model, another size: so the collection is made anew
    if qdrant.collection_exists(COLLECTION):
        qdrant.delete_collection(COLLECTION)
    qdrant.create_collection(COLLECTION, vectors_config=VectorParams(size=size, distance=Distance.COSINE))
    qdrant.upsert(COLLECTION, points)
    qdrant.close()     # one process at a time: the worker comes next
    print(f"{len(points)} texts are in collection {COLLECTION} of {PATH}")


if __name__ == "__main__":
    main()
