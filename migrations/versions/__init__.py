"""One file per revision, ``NNNN_verb_object.py``: up and down, never edited after a release."""
