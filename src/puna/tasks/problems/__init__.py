"""The families of problems, one file each. A module offers its tasks as `TASKS`."""
