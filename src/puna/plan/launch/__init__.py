"""Launch files for a plan: torchrun, Slurm, Kubeflow, SkyPilot and Ray."""
