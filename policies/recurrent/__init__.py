"""Recurrent cores, which remember in a hidden state instead of slots. A new one is a file beside these, its settings in
`policies.settings`, and one line in `policies.memory`."""
