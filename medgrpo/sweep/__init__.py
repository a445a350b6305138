"""Sweeps: many short trainings that differ in a few settings, told apart on dev, the best of them judged on test.

`space` reads what may vary, `study` remembers what was tried (Optuna's ask-and-tell, in a database), `pruning` ends
what is plainly behind, `selection` says which trial is chosen, `tracking` keeps all of it in MLflow, `plots` draws it.
Nothing here trains: `loop` hands each trial to a runner. Optuna is imported inside functions.
"""
