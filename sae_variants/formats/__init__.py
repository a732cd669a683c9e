"""SAEs in the layouts of other libraries, SAELens' registry of released SAEs, and SAEs on the Hub."""
