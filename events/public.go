package events

// Public is the form of a fact that subscribers outside may see: the same
// envelope without the hashes of secrets. A fact without a hash is returned as
// it is.
func Public(e Envelope) Envelope {
	switch data := e.Data.(type) {
	case KeyCreated:
		data.Secret.SHA256 = ""
		e.Data = data
	case KeyRotated:
		data.Secret.SHA256 = ""
		e.Data = data
	}
	return e
}
