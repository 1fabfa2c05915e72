"""What a policy remembers: an episode as it was played, the lives of its memories, whether they mattered, and the page,
the figure and the film that show it."""
