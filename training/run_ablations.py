"""Train variants of one recipe with several seeds: `python -m cavmae_sync_hf.training.ablations`, as a script.

python training/run_ablations.py syncworld --jobs 2
"""

from cavmae_sync_command import run_script
from cavmae_sync_hf.training.ablations import KEPT, main

if __name__ == "__main__":
    run_script(main, KEPT)
