"""The demo's inputs: a fictional ferry line, a base model made here in seconds, and its fine-tuning data.

    corpus.py           what the base model reads: the *form* of help desk questions with random answers
    muon.py             the optimiser that gets a tiny model there quickly on a CPU
    base.py             `python -m modelledger.demo.base OUT_DIR` makes the base model's folder
    organisation.jsonl  what the fictional organisation, Skerry Line, trains on
    held_out.json       questions worded as in no training line, with the right answers
    settings.py         the training options that are known to work for them

Nothing is downloaded and nothing is simulated: the base is a real Llama of 1.9 million parameters.
"""
