"""Text to tokens to batches.

sources.py, readers.py, cutting.py      files and data sets -> documents, streamed
tokenizer.py, file_tokenizer.py, gpt2.py, bpe.py    tokenizers by name, from files, GPT-2's, one of one's own
fast_bpe.py         byte-level BPE by tiktoken, where its ids are the same; encode.py: in threads
prepare.py, staging.py, shards.py, manifest.py      documents -> shards and a manifest; can be killed and goes on
store.py, order.py, batches.py          shards -> windows -> batches; the order keeps no state
"""
