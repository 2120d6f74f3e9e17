"""A vision-language-action policy for a table-top world: made, trained, evaluated, pruned."""
