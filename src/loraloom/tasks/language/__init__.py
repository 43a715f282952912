"""What the tasks over text share: tokens, chat, packing, generation, sequence to sequence."""
