"""The programs that you run: one file per job, each with `main()`. Only this package imports the other three."""
