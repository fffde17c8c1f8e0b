"""`jaxgrpo bench`: what rollouts and steps reach on this machine, as counted work over measured time and measured peaks."""
