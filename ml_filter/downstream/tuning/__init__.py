"""Fine-tune a language model on instruction data: SFT and DPO, full or as an adapter, with everything to serve it."""
