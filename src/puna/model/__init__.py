"""The model: its shapes, how it lies over devices, the network itself and the directories it is kept in."""
