"""The Hub's name of what a model does, by the model's class."""

from __future__ import annotations

_BY_ENDING = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForImageClassification": "image-classification",
    "ForAudioClassification": "audio-classification",
    "ForVideoClassification": "video-classification",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForMaskedLM": "fill-mask",
    "ForQuestionAnswering": "question-answering",
    "ForSemanticSegmentation": "image-segmentation",
    "ForObjectDetection": "object-detection",
    "ForCTC": "automatic-speech-recognition",
    "ForSpeechSeq2Seq": "automatic-speech-recognition",
}
_SOUND = ("Wav2Vec2", "Hubert", "WavLM", "UniSpeech", "SEW", "Data2VecAudio", "Whisper", "AST")
"""Models of sound whose classes end as those of texts do."""


def of_class(name: str | None) -> str | None:
    """The task of a model's class; None where the name does not tell it."""
    for ending, task in _BY_ENDING.items():
        if name is not None and name.endswith(ending):
            sound = name.startswith(_SOUND) and task == "text-classification"
            return "audio-classification" if sound else task
    return None
