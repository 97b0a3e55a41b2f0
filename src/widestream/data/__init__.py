"""Text to tokens to batches.

options.py, names.py, folders.py        how text is read, what names of files say, what of a folder is read
packed.py, readers.py, tables.py, cutting.py, records.py    files -> records, good or bad, in little memory
sources.py                              what was named on the command line -> documents, streamed
tokenizer.py, file_tokenizer.py, gpt2.py, bpe.py    tokenizers by name, from files, GPT-2's, one of one's own
fast_bpe.py         byte-level BPE by tiktoken, where its ids are the same; encode.py: in threads
round_trip.py       what of a text its ids do not tell
prepare.py, staging.py, shards.py, manifest.py      documents -> shards and a manifest; can be killed and goes on
merge.py            parts that were prepared by separate jobs -> one folder; making.py: what both have in common
remote.py           data behind a URL -> a folder here, and shards as they are needed
store.py, mapping.py, stamps.py, order.py, batches.py          shards -> windows -> batches; the order keeps no state
"""
