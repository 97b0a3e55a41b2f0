"""What a decoder is built of beside its stream: attention, MLP, norms, embedding, positions, parameter roles.

Nothing here knows which stream it is, or that there is one.
"""
