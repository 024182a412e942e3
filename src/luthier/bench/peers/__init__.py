"""Other people's training loops as arms, each in its own interpreter; imports nothing of luthier.

`run.py` is the script; one file a peer. What an arm is, what was set, and what could not be, stands in the file of its
peer. In all of them: LoRA on the same base from the same start, the same rows, the same learning rate held constant,
AdamW without weight decay, 16 rows a step.
"""
