"""The study.toml that `openrl research new` writes."""

TEMPLATE = """\
name = "STUDY"
command = ["python", "attempt.py"]   # run here once an attempt; see openrl.research.Attempt
metric = "accuracy"                  # what attempts report on the questions that choices are made by
# final_metric = "final_accuracy"    # the same on questions that no choice was made by
goal = "maximize"
# objectives = [{metric = "accuracy", goal = "maximize"}, {metric = "num_tokens", goal = "minimize"}]  # in their place
seeds = [1, 2, 3]                    # the first is everybody's; the best are run again with the others
promote = 2
parallel = 4                         # attempts at once; "auto": as many as keep the server's devices busy
# max_parallel = 16                  # the most that "auto" runs at once

[budget]
attempts = 24
# gpu_seconds = 7200                 # as the server meters them
# tokens = 50_000_000

[space]                              # or [agent], below
rank = {values = [8, 16, 32]}
learning_rate = {low = 1e-5, high = 1e-3, log = true}

[defaults]                           # what the best is compared to; tried first
rank = 16
learning_rate = 1e-4

[proposer]
kind = "tpe"                         # grid, random, tpe or gp

# [early_stop]                       # successive halving (ASHA)
# first_rung = 4
# factor = 3

# [agent]                            # in place of [space] and [defaults]: it changes the program
# command = ["my-agent", "--print"]  # any command; the prompt is its standard input
# researchers = 2
# editable = ["attempt.py", "lib/**/*.py"]
# attempts = 12                      # turns of each researcher
# turn_timeout_s = 1800
# environment = ["MY_AGENT_KEY"]     # variables it gets beside PATH, HOME and the like

# [kubernetes]                       # attempts as Jobs of a cluster: docs/research.md
# image = "ghcr.io/openrl/openrl:0.1.0"
# claim = "studies"                  # a volume with this directory, mounted by their pods at the same path
"""
