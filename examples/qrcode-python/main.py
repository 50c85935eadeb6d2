"""Draws its path, or what the query asks for, as a QR code."""

import io

import segno  # installed by the deploy; see requirements.txt


def handler(event, context):
    params = event.get("pathParameters") or {}
    query = event.get("queryStringParameters") or {}
    text = params.get("text") or query.get("text") or "https://example.com/"
    image = io.BytesIO()
    segno.make(text).save(image, kind="svg", scale=8)
    return {
        "statusCode": 200,
        "headers": {"Content-Type": "image/svg+xml"},
        "body": image.getvalue().decode(),
    }
