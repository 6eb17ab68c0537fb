"""To and from other programs: Neuronpedia's files, delphi's folders, data sets on the hub. docs/exchange.md."""
