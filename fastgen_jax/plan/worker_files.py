"""Names of the files in which the compiling process leaves its answer."""

PROGRAM_FILE = "program.hlo"
ANSWER_FILE = "answer.json"
