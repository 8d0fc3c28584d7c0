package domain

// Code is the outcome of verifying one request, section 3 of the contract. It
// is what the ledger records; the document's answers only decide how it looks
// to the caller.
type Code string

// The codes in the order in which they are checked; the first that fails is
// the decision.
const (
	CodeInsecureTransport   Code = "INSECURE_TRANSPORT"
	CodeWrongContentType    Code = "WRONG_CONTENT_TYPE"
	CodeMissingCredential   Code = "MISSING_CREDENTIAL"
	CodeMalformedCredential Code = "MALFORMED_CREDENTIAL"
	CodeMalformedKey        Code = "MALFORMED_KEY"
	CodeUnknownKey          Code = "UNKNOWN_KEY"
	CodeRevoked             Code = "REVOKED"
	CodeSuperseded          Code = "SUPERSEDED"
	CodeExpired             Code = "EXPIRED"
	CodeWrongEnvironment    Code = "WRONG_ENVIRONMENT"
	CodePlanDenied          Code = "PLAN_DENIED"
	CodeWrongOwner          Code = "WRONG_OWNER"
	CodeWrongResource       Code = "WRONG_RESOURCE"
	CodeInsufficientScope   Code = "INSUFFICIENT_SCOPE"
	CodeOriginDenied        Code = "ORIGIN_DENIED"
	CodeIPDenied            Code = "IP_DENIED"
	CodeRateLimited         Code = "RATE_LIMITED"
	CodeValid               Code = "VALID"
)

// Two codes that are not about the key.
const (
	CodeStateTooStale    Code = "STATE_TOO_STALE"
	CodeAuditUnavailable Code = "AUDIT_UNAVAILABLE"
)

// Codes lists every code in the order of section 3 of the contract; the two
// that are not about the key come last.
func Codes() []Code {
	return []Code{
		CodeInsecureTransport, CodeWrongContentType, CodeMissingCredential, CodeMalformedCredential,
		CodeMalformedKey, CodeUnknownKey, CodeRevoked, CodeSuperseded, CodeExpired, CodeWrongEnvironment,
		CodePlanDenied, CodeWrongOwner, CodeWrongResource, CodeInsufficientScope, CodeOriginDenied,
		CodeIPDenied, CodeRateLimited, CodeValid, CodeStateTooStale, CodeAuditUnavailable,
	}
}

// Status is the HTTP status of a refusal for which the document has neither an
// entry nor a default.
func (c Code) Status() int {
	switch c {
	case CodeValid:
		return 200
	case CodeInsecureTransport, CodeWrongEnvironment, CodePlanDenied, CodeWrongOwner, CodeWrongResource,
		CodeInsufficientScope, CodeOriginDenied, CodeIPDenied:
		return 403
	case CodeWrongContentType:
		return 415
	case CodeRateLimited:
		return 429
	case CodeStateTooStale, CodeAuditUnavailable:
		return 503
	}
	return 401
}

// Message is the sentence of a refusal for which the document has none. It
// says to the caller what is wrong, and nothing that helps to guess.
func (c Code) Message() string {
	switch c {
	case CodeInsecureTransport:
		return "This API accepts requests over HTTPS only."
	case CodeWrongContentType:
		return "The Content-Type of this request is not accepted."
	case CodeMissingCredential:
		return "No API key was sent."
	case CodeMalformedCredential:
		return "The header with the API key is not well-formed."
	case CodeMalformedKey:
		return "This is not an API key of this API."
	case CodeUnknownKey:
		return "The API key is not known."
	case CodeRevoked:
		return "The API key was revoked."
	case CodeSuperseded:
		return "The API key was rotated; its previous secret no longer works."
	case CodeExpired:
		return "The API key has expired."
	case CodeWrongEnvironment:
		return "The API key belongs to another environment."
	case CodePlanDenied:
		return "The plan does not include this request."
	case CodeWrongOwner:
		return "The API key belongs to another owner."
	case CodeWrongResource:
		return "The API key is not authorized for this resource."
	case CodeInsufficientScope:
		return "The API key lacks a scope that this request needs."
	case CodeOriginDenied:
		return "The API key may not be used from this origin."
	case CodeIPDenied:
		return "The API key may not be used from this address."
	case CodeRateLimited:
		return "Too many requests."
	case CodeValid:
		return "The API key is valid."
	case CodeStateTooStale:
		return "API keys cannot be verified at the moment."
	case CodeAuditUnavailable:
		return "This request could not be recorded, so it was not admitted."
	}
	return "The request was refused."
}
