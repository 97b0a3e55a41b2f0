"""A run behind HTTP, with the interface of OpenAI's completions.

limits.py           what one server takes on
request.py          a body -> what is asked, or one sentence that says what is wrong with it
continuing.py       one sequence: draws, text, stops, log-probabilities
engine.py           the thread that owns the model: a bounded queue, and sequences side by side
answers.py          the shapes that OpenAI's clients expect
app.py              routes (starlette)
server.py           `serve_run`: a run's model behind uvicorn, until it is told to end
"""
