"""The model: its shapes, its layout over devices, the network itself and model directories."""
