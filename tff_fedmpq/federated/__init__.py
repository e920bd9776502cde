"""The federated round.

fedmpq.py            the algorithm: its settings, and the scheme that they make
scheme.py            a scheme: the pieces that a round is composed of
process.py           the round: which function runs where
checked_computation.py   arguments that are checked before a round
population.py        client ids, budgets, and rows in tables
tasks.py             structure of examples, loss and metrics
server.py            messages to clients, aggregation, the next state
acceptance.py        whether a client's contribution counts
aggregation.py       accepted updates to the next model, by any aggregator of TFF
robust_means.py      trimmed mean and median over clients
client_work.py       a client's part, as a TFF computation
local_training.py    a client's training
messages.py          messages in both directions, and their size in bits
config.py            settings of local training
evaluation.py        evaluation of the global model and of devices' models
runtime.py           TFF's worker process, owned and ended by this library
remote_runtime.py    the clients of a round on other machines
remote_round.py      which client is next, and what is back
remote_host.py       a worker on another machine
remote_calls.py      calls of computations on a worker
wire.py              addresses, health checks and TLS between machines
checkpoints.py       states of a process on disk

Its modules are imported when they are used: settings need no TensorFlow.
"""
