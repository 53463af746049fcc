def load_weights(model, path): raise NotImplementedError
