"""How the work is carried out: processes, threads, random numbers, modes of the user's program."""
