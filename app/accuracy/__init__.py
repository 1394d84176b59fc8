"""How good the estimates are: every published measurement as a request, its answer beside what was measured."""
