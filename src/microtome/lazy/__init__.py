"""From a selection of pixels to frames, to reads, to an array. The read planner, and the fronts that xarray sees."""
